"""Which elements go on which sites of which structure type: the substitutions of the embedded set.

``TABLE`` has one paragraph per structure type. Its first line reads ``name | structure | sites``: the structure
is a prototype of the AFLOW library (tag and formula) or one of ``prototypes.BUILT``; the sites are that
structure's elements in the order of the cases below. The indented lines hold cases separated by ``;``. A case
gives, for each site, the elements that may sit there (separated by commas); all combinations are meant, except
those that put one element on two sites. Combinations of ionic types are charge neutral in common oxidation
states; intermetallic types list families in which the type is known.
"""

from __future__ import annotations

METALS = (
    "Li Na K Rb Cs Be Mg Ca Sr Ba Sc Y La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Ti Zr Hf V Nb Ta Cr Mo W "
    "Mn Tc Re Fe Ru Os Co Rh Ir Ni Pd Pt Cu Ag Au Zn Cd Hg Al Ga In Tl Sn Pb Sb Bi Ac Th Pa U Np Pu"
)
"""Elements that get close-packed and body-centred cells, so that each has an elemental reference."""

TABLE = """
arsenic | A_hR2_166_c As | As
    As,Sb,Bi,P
selenium | A_hP3_152_a Se | Se
    Se,Te,S
diamond | A_cF8_227_a C | C
    C,Si,Ge,Sn
dhcp | A_hP4_194_ac La | La
    La,Ce,Pr,Nd,Pm,Sm,Ac,Y,Gd
rocksalt | AB_cF8_225_a_b NaCl | Na Cl
    Li,Na,K,Rb F,Cl,Br,I; Cs F; Ag F,Cl,Br; Mg,Ca,Sr,Ba,Eu O,S,Se,Te; Yb O,S,Te; Mn O,S,Se; Fe,Co,Ni,Cd,V,Ti O;
    Pb,Sn S,Se,Te; Ge Te; Sc,Y,La,Ce,Nd,Gd,Er N,P,As,Sb,Bi; Lu N,Sb; Ti,Zr,Hf,V,Nb,Ta C,N; U,Th C,N,P,As,S;
    La,Gd,Ho S,Te; Li,Na,K,Rb H; Cr N; Pu C,N
zincblende | AB_cF8_216_c_a ZnS | Zn S
    B,Al,Ga,In N,P,As,Sb; Be,Zn,Cd,Hg,Mg S,Se,Te; Zn O; Cu,Ag Cl,Br,I; Si,Ge C; Mn S,Se,Te
wurtzite | AB_hP4_186_b_b ZnS | Zn S
    Al,Ga,In,B N; Be,Zn O; Zn,Cd,Mg,Mn S,Se,Te; Cu,Ag I; Si C; Cu Cl,Br,H; Al P,As
cscl | AB_cP2_221_b_a ClCs CsCl | Cs Cl
    Cs,Tl,Rb Cl,Br,I; Ni,Co,Fe,Ru,Rh,Pd,Ir Al,Ga; Ti,Zr,Hf Fe,Co,Ni,Ru,Os,Rh,Ir; Y,Gd,Er,Sc,La Cu,Ag,Zn,Cd,Mg;
    Li Ag,Hg,Tl,Au; Cu,Ag,Au Zn,Cd; Be Cu,Co,Ni,Pd; Ca,Sr Tl,Cd,Hg; V,Mn Ru; Sc,Y,Er Rh,Ru,Au; Mn Al,Pd,Ni,Rh
nias | AB_hP4_194_c_a NiAs | Ni As
    Fe,Co,Ni,Cr,V,Ti S,Se,Te; Mn Te,As,Sb,Bi; Fe,Co,Ni,Cr Sb; Pd,Pt,Ni Sn,Bi,Te; Au Sn; Ir Sb,Te; Rh Bi,Te,Se;
    Pt B,Pb; Cu Sn; Sc,Zr Te; Nb N
tungsten_carbide | AB_hP2_187_d_a WC | W C
    W,Mo C,N; Ta,Nb N; Zr,Hf,Ti Te,P; Zr,Hf S; Ru,Os C; Mo P
cupt | AB_hR2_166_a_b CuPt | Cu Pt
    Cu Pt; Ag,Ni Pt,Pd; Li Ag
cuau | AB_tP2_123_a_d CuAu | Cu Au
    Cu Au; Ti Al,Ga,Hg; Fe,Co,Mn,Ni Pt,Pd; Zr Hg; Mn Al,Ga,Ni,Ir,Rh; Li Bi,Pb,Sn; Na Bi; Mg In,Cd; Cd,Zn Pd,Pt;
    Nb,V,Ta Rh,Ir,Pt; Hg Ni; In,Ga Pt; Cr Pd
natl | AB_cF16_227_a_b NaTl | Na Tl
    Li Al,Ga,In,Zn,Cd,Tl; Na Tl,In
crb | AB_oC8_63_c_c CrB | Cr B
    Cr,V,Nb,Ta,Ni,Mo,W B; Ca,Sr,Ba Si,Ge,Sn; La,Ce,Gd,Y,Er Ni,Rh,Ga; Zr,Hf Al,Ni,Pt; Th Al,Co,Ir;
    Er,Y,Gd,La Si,Ge; In,Tl I,Br; Y,Sc Al,Ga
feb | AB_oP8_62_c_c FeB | Fe B
    Fe,Co,Mn,Ti,Hf B; La,Ce,Pr,Nd,Gd,Y Si,Ge; Zr,Hf Si,Ge; Gd,Y,Er Ni,Pt; La,Sm Cu; U Si; Y,Tb Pd
mnp | AB_oP8_62_c_c MnP | Mn P
    Mn,Fe,Co,Ru,W,Cr P; V,Mn,Fe,Co,Cr As; Pd,Rh,Ni,Ir Ge; Pd,Pt,Rh Si; Au Ga; Ir,Ru Sb
fesi | AB_cP8_198_a_a FeSi | Fe Si
    Fe,Co,Mn,Cr,Re,Os,Ru,Rh Si; Cr,Co,Rh Ge; Pd,Pt Ga,Al; Pt Mg; Hf,Zr Sn,Sb; Rh Sn; Au Be
cosn | AB_hP6_191_f_ad CoSn | Co Sn
    Co,Fe,Ni,Rh,Pt Sn,In,Tl; Fe,Mn Ge
millerite | AB_hR6_160_b_b NiS | Ni S
    Ni S,Se,Te; Co S,Se
gete | gete | Ge Te
    Ge,Sn,Pb Te,Se; Sb,Bi P,As
gas | gas | Ga S
    Ga,In,Al S,Se,Te
ges | AB_oP8_62_c_c GeS | Ge S
    Sn,Ge,Pb,Si S,Se,Te; Ge,Sn O; Tl I
pbo | AB_tP4_129_a_c PbO | O Pb
    O Pb,Sn,Ge; Fe Se,Te,S; S,Se Sn,Ge; Li Bi
pts | AB_tP4_131_c_e PtS | Pt S
    Pt,Pd O,S; Pb,Cu,Ag O; Ni S
nbp | AB_tI8_141_a_b NbP | Nb P
    Nb,Ta P,As; Zr,Hf C; V P
tias | AB_hP8_194_ad_f TiAs | Ti As
    Ti,Zr,Hf,U As,P; V,Nb Se; Hf Sb
ticu | AB_tP4_129_c_c TiCu | Ti Cu
    Ti,Zr,Hf Cu,Ag,Au,Pd
aucd | AB_oP4_51_e_f CdAu | Au Cd
    Au,Ag,Pt,Pd Cd,Zn; Au,Pd Ti; Pd,Pt V,Nb; Mg Cd; Ir Ti; Au Hf
tini_martensite | tini_martensite | Ti Ni
    Ti,Zr,Hf Ni,Pd,Pt,Cu; Sc Ni,Cu
boron_nitride | AB_hP4_194_c_d BN | B N
    B,Al,Ga N; Si C; Be,Mg,Zn O
mob | AB_tI16_141_e_e BMo MoB | Mo B
    Mo,W,Ta,V,Cr B
tlse | AB_tI16_140_ab_h TlSe | Tl Se
    Tl,In S,Se,Te
cual2 | A2B_tI12_140_h_a Al2Cu | Cu Al
    Cu Al,Ga; Fe,Co,Mn,Rh,Au,Pd Sn; Au,Pd,Rh Pb; Ti,V,Cr Sb; Mg,Ag Ga,In; Si,Al Zr,Hf,Ta; Ni,Ag,Pd Zr,Th;
    B Fe,Co,Ni,Mo,W,Cr,Mn; Ge,Ga Zr,Hf; Ni,Co Ta; Au Na,K; Ir,Co Sc; Pb Th
fluorite | AB2_cF12_225_a_c CaF2 | Ca F
    Ca,Sr,Ba,Cd,Pb,Mn,Hg,Eu F; Sr,Ba Cl; Zr,Hf,Ce,Th,U,Pu,Np,Pr,Ti O; Al,Ga,In Au,Pt; Sn Pt; Co,Ni Si;
    La,Ce,Gd,Y,Er,Lu,Sc,Nb,Ti,Zr,V H
antifluorite | AB2_cF12_225_a_c CaF2 | Ca F
    O,S,Se,Te Li,Na,K,Rb; Si,Ge,Sn,Pb Mg; P Ir,Rh; C Be
rutile | A2B_tP6_136_f_a TiO2 | Ti O
    Ti,V,Cr,Mn,Nb,Mo,Ru,Rh,Sn,Ta,W,Re,Os,Ir,Pb,Ge,Si O; Mg,Mn,Fe,Co,Ni,Zn,Pd,V F; Mg H; Te O; Ca Cl,Br
anatase | A2B_tI12_141_e_a TiO2 | Ti O
    Ti,Sn,Zr,V,Nb,Hf,Ge O
cdi2 | AB2_hP3_164_a_d CdI2 | Cd I
    Mg,Ca,Mn,Fe,Co,Ti,V,Cd,Pb,Zn,Yb I; Mg,Mn,Fe,Co Br; Ti,Zr,Hf,Sn,Pt,Ta,V,Nb S,Se;
    Ti,Zr,Pt,Ni,Pd,Co,Ir,Rh,Si Te; Ge S,Se; Th I
cdcl2 | cdcl2 | Cd Cl
    Mg,Mn,Fe,Co,Ni,Cd,Zn Cl; Ni,Cd,Zn Br; Ni I; Ta S,Se; O Cs,Rb
molybdenite | AB2_hP6_194_c_f MoS2 | Mo S
    Mo,W,Nb,Ta S,Se,Te; Re,Tc,Os B; Cr S,Se
alb2 | AB2_hP3_191_a_d AlB2 | Al B
    Al,Mg,Ti,Zr,Hf,V,Nb,Ta,Cr,Mo,Sc,Y,Mn,Tb,Er,Pu B; La,Ce,Gd,Er,Y,U,Th,Ca,Sr,Ba Si,Ga; Ca,Gd,Li,Na,U Hg;
    Th Al,Cu,Ni; Eu Ga
cain2 | AB2_hP6_194_b_f CaIn2 | Ca In
    Ca,Sr,Eu,Yb In,Zn,Au; Ca,Y,Gd,La Cd; Ca,Sr Tl,Hg; La,Ce,Nd Zn
laves_c15 | A2B_cF24_227_d_a Cu2Mg MgCu2 | Mg Cu
    Mg Cu; Ca,Y,La,Ce,Gd,Er,Lu,Sr Al; Y,Gd,Er,Zr,Hf,Sc Fe,Co; Y,La,Gd,Lu,Ca Ni; Zr,Hf,Ti,Nb,Ta Cr;
    Zr,Hf V,W,Mo; Na,K,Rb Au; Y,La,Ce,Sc,Lu,Gd,Th Ru,Rh,Ir,Os; Ca,Sr Rh,Ir,Pd,Pt; Bi,Pb Au; Ba Rh,Pt; Nb,Ta Co;
    Na Ag; La,Y,Gd Mg; K Bi; Zr Zn; Ti Be,Co; Ag,Cu,W,Nb Be; La Pt; Y Mn
laves_c14 | AB2_hP12_194_f_ah MgZn2 | Mg Zn
    Mg Zn; Ti,Zr,Hf,Nb,Ta,Sc Mn,Fe; Ca Mg,Li,Cd; Sr,Ba,Yb Mg; K,Cs Na; Zr,Hf,Ti Re; Lu,Er,Sc Ru,Os; Zr Al;
    W,Mo Fe; V,Mn,Re Be
mosi2 | AB2_tI6_139_a_e MoSi2 Si2Mo | Mo Si
    Mo,W,Re Si; Mg Hg; Ti,Zr,Hf Pd,Au; Cu,Pd,Ag Ti,Zr,Hf; Al Cr; Sc,Y Ag,Au; Mn Au,Pd
cac2 | cac2 | Ca C
    Ca,Sr,Ba,La,Ce,Nd,Gd,Y,Er,U,Yb,Th C; Ca,Sr,Ba,K,Rb,Cs O; Mg C
thsi2 | thsi2 | Th Si
    Th,U,La,Ce,Pr,Nd,Sm,Gd,Y,Sr Si,Ge; La Al; Ca,Sr Ga; Er,Pu,Np,Eu,Ca Si
crsi2 | AB2_hP9_180_d_j CrSi2 | Cr Si
    Cr,V,Nb,Ta,Mo,Ti,Zr,Re Si; V,Nb,Ta,Ti Ge; Hf Sn
tisi2 | A2B_oF24_70_e_a TiSi2 | Ti Si
    Ti,Zr,Hf Si,Ge; Ru Al,Ga; Zr Sn
zrsi2 | A2B_oC12_63_2c_c ZrSi2 | Zr Si
    Zr,Hf,Ti,Ce,Er,Y,Lu Si,Ge; La,Nd Si; U Sn
hfga2 | A2B_tI24_141_2e_e HfGa2 | Hf Ga
    Hf,Ti,Zr Ga; Hf,Zr Al
mopt2 | AB2_oI6_71_a_g MoPt2 | Mo Pt
    Mo Pt; V,Cr,Nb,Ti,Zr,Hf,Ta Pt,Pd,Ni; Sc Pt; W Ni
inni2 | AB2_hP6_194_c_ad InNi2 | In Ni
    In,Sn,Ge,Al,Ga Ni,Co,Mn,Fe; Ga,Al Zr,Ti; In,Sn Pd,Rh; Pb La,Y; Sb Co; In Hf
cotunnite | A2B_oP12_62_2c_c PbCl2 | Pb Cl
    Pb,Ba,Sr Cl,Br; Ba,Sr I; Ca,Sr,Ba H; Th S,Se; Eu,Sm Cl; U S; Zr,Hf O; Ba F
co2si | A2B_oP12_62_2c_c Co2Si | Si Co
    Si Co,Ru,Rh,Pd,Ni,Ca,Sr; Ge Ca,Sr,Ba,Pd,Pt; Sn Ca,Sr,Pd,Yb; P Co,Ru; Al Y,Gd,La; Ga Er
marcasite | AB2_oP6_58_a_g FeS2 | Fe S
    Fe,Ru,Os S,Se,Te; Fe,Ru,Os,Ni P,As,Sb; Co Te,Se,As,Sb; Cr Sb; Ni S
cacl2 | AB2_oP6_58_a_g CaCl2 | Ca Cl
    Ca,Sr Cl,Br; Mg Cl; Si,Ge,Sn,Ti,Ru,Mn,Ir,Pb,Pt O; Mg,Ni,Fe,Mn,Zn F
co2c | AB2_oP6_58_a_g Fe2C | C Fe
    C,N Fe,Co,Ni,V,Mo
pyrite | AB2_cP12_205_a_c FeS2 | Fe S
    Fe,Mn,Co,Ni,Ru,Os,Rh,Cu,Zn S; Mn,Co,Ni,Ru,Rh Te; Pt P,As,Sb; Si P; Au Sb; Cu,Ir Se; Cd O; Pd As,F
cuprite | A2B_cP6_224_b_a Cu2O | O Cu
    O Cu,Ag,Au,Pb; S Ag,Cu
baddeleyite | A2B_mP12_14_2e_e ZrO2 | Zr O
    Zr,Hf,Ti,Pr,Th,U,Ce O; Co,Rh Sb,As
sis2 | A2B_oI12_72_j_a SiS2 | Si S
    Si,Ge S,Se; Be Cl,Br,I; Si O; Fe,Zn,Mn,Cd Cl; Sn S
quartz | A2B_hP9_152_c_a SiO2 | Si O
    Si,Ge O; Be F; Zn Cl; Si,Ge S
cristobalite | A2B_cF24_227_c_a SiO2 | Si O
    Si,Ge O; Be,Zn F,Cl; Si S,Se; Ge S
cu2sb | A2B_tP6_129_ac_c Cu2Sb | Sb Cu
    Sb Mn,Cu,Cr,Sc; As Mn,Fe,Cr; Al Cr; Ge Y,Sc; Bi Cu; U,Th As,Sb,Bi,P; La,Ce,Nd,Gd,Er,Y,Ho Te,Se;
    La,Sm,Y,Gd Sb; Zr,Hf As; Nd S; Ti Sb
fe2p | A2B_hP9_189_fg_bc Fe2P | P Fe
    P Fe,Mn,Ni,Pd,Cr; As Pd,Mn; Si Pt,Pd; Ge Ni,Pd; B Rh
v2n | AB2_hP9_162_ad_k V2N | N V
    C W,Mo,Ta,V,Nb,Fe; N Ta,V,Nb,Cr,Ti
ptsn4 | AB4_oC20_41_a_2b PtSn4 Sn4Pt | Pt Sn
    Pt,Pd,Ir,Au,Ni Sn; Pd,Rh Pb,Sn; Ir,Co Ge
na3as | AB3_hP8_194_c_bf Na3As | As Na
    As,P,Sb,Bi Na,K,Rb,Li; N Na,K; P Cu; As Cu,Mg; Ir,Au,Pt Mg; Bi,Sb Cs
cu3au | AB3_cP4_221_a_c Cu3Au | Au Cu
    Au Cu,Pd; Pt,Pd,Au,Sn Fe,Co,Mn,Ni,Cr; Al,Ga,Ge,Si,In,Sn Ni,Co; In,Sn,Pb,Tl La,Ce,Nd,Y,Gd,Er;
    Sc,Y,Er,Lu,U,Zr,Hf,Np Al,Ga,In,Rh,Ir,Pd; Y,La,Ca,Ce,Gd Sn,Pb,Tl,Pd,Pt; Al,Ga Pt; Ti Zn,Pt,Ir,Hg;
    V,Nb,Ta Ir,Rh; Mn Ir,Rh,Pt; Al Zr,Sc; U Si,Ge; Na,Ca Pb; Mg Pd; Al,Ga,Si Fe; Cu Pt; Pt Cu
d0_22 | A3B_tI8_139_bd_a Al3Ti TiAl3 | Ti Al
    Ti,V,Nb,Ta,Hf,Zr Al,Ga; V Ni,Pd; Nb,Ta Pd,Pt; Mn Au,Ga,Al; Sb,V Ni,Pt; Ti Hg; Nb Ni,Rh; In Pt
d0_23 | A3B_tI16_139_cde_e Al3Zr ZrAl3 | Zr Al
    Zr,Hf Al; Mn Pd,Au; Ti,Zr Al,Ga; Ag Cd; In Pd; Sc Ga; Ga Pt
d0_19 | A3B_hP8_194_h_c Ni3Sn | Sn Ni
    Sn Ni,Mn,Fe,Ti,Co; Ge Fe,Mn; Ga,In,Al Ti,Fe,Mn; Mg Cd; Cd Mg; W,Mo,V Co,Ir,Rh,Pt; Al Y,Ce,Zr,U,La; Pb,Sn La;
    La,Gd Al; Tl La,Nd; Sb Mn
cu3ti | A3B_oP8_59_bf_a TiCu3 Cu3Ti | Ti Cu
    Ti Cu,Ag,Au; Nb,Ta,Mo Ni,Pt; Sb Ni,Cu,Ag; Sn Ag,Cu; V,Zr,Hf Au; Mo Co; Zr Ag; Ge Cu
bif3 | AB3_cF16_225_a_bc BiF3 | Bi F
    Bi,Sb Li,Cs,K,Rb,Na; Al,Si,Ga Fe; Ga Mn; Si Mn,Ni; Sn,Sb Cu; Hg,Ga,Tl Li; La,Pr,Ce Mg; Sb,Sn Ni,Fe;
    Al Ti,Zr,Mn
a15 | A3B_cP8_223_c_a Cr3Si | Si Cr
    Si,Ge,Al,Ga,Sn,In,Sb,As V,Nb; Si Cr,Mo; Ga,Ge,Ru,Os,Ir,Rh,Pt Cr; Al,Ge,Ir,Os Mo; Ir,Pt,Au,Sb,Hg Ti;
    Au,Ir,Pt,Os,Rh Nb,V; Au,Sn Zr,Ta; Ge Ta; Co,Ni,Pd,Re V; Bi Nb; Si W,Ta
cu3n | A3B_cP4_221_d_a ReO3 | Re O
    N Cu,Ag,Ni,Pd,Na,Li; P Cu
reo3 | A3B_cP4_221_d_a ReO3 | Re O
    Re,W,Mo,U O; Al,Sc,Ga,Ta,Nb,Mo,Ti,Fe,Y,Cr F
alf3 | AB3_hR8_155_c_de AlF3 | Al F
    Al,Fe,Cr,V,Ti,Co,Ru,Rh,Ga,Sc,Mo,Ir,Pd,In F; W,Re O
bii3 | AB3_hR8_148_c_f BiI3 | Bi I
    Bi,Sb,As I; Cr,Fe,Sc,Ti,V,Y Cl,Br; Cr,Y,Sc I; Ru,Rh,Ir Cl,Br; Gd,Er,Lu I,Br
alcl3 | AB3_mC16_12_g_ij AlCl3 | Al Cl
    Al,Y,Rh,Ir,Cr,In,Tl,Er,Dy,Ho,Lu,Tm Cl; Rh,Ir,Ru Br,I; In Br
ucl3 | ucl3 | U Cl
    La,Ce,Pr,Nd,Sm,Gd,U,Eu,Ac Cl; La,Ce,Pr,U,Ac Br; Th,Y I; U,La F
li3n | A3B_hP4_191_bc_a Li3N | N Li
    N,P,As Li,Na,K
bas3 | AB3_tP8_113_a_ce BaS3 | Ba S
    Ba,Sr S,Se,Te
al4ba | A4B_tI10_139_de_a Al4Ba BaAl4 | Ba Al
    Ba,Sr,Eu,Ca,La,Ce Al,Ga,Zn,In; Th,U Al,Zn; La Cd; K,Na,Rb Ga,In; Na,K Tl
ni4mo | AB4_tI10_87_a_h Ni4Mo MoNi4 | Mo Ni
    Mo,W,Cr,V Ni; Mn,V,Cr,Ti,Zr,Hf Au,Pt; Sc,Tm,Yb,Lu Au
cacu5 | AB5_hP6_191_a_cg CaCu5 | Ca Cu
    La,Pr,Gd,Y,Ca,Sr,Ba,Th Cu,Ag,Zn,Au; La,Ce,Nd,Gd,Dy,Er,Lu,Y,Sc,Ca,Th Ni,Co; Y,Gd,Th Fe; La,Ce,Sr,Ba,Ca Pt,Pd;
    Zr,Hf Be; K Au; La,Y Rh,Ir
be5au | AB5_cF24_216_a_ce Be5Au AuBe5 | Au Be
    Au,Pd,Fe,Co Be; U,Y,Zr,Hf,Er Ni,Cu; Ca,Yb,Lu Ag; Mg Cu,Ni
cab6 | A6B_cP7_221_f_a CaB6 | Ca B
    Ca,Sr,Ba,La,Ce,Pr,Nd,Sm,Gd,Tb,Dy,Ho,Er,Tm,Lu,Y,Eu,Yb,Th,K,U,Pu B
cac6 | A6B_hR7_166_g_a CaC6 | Ca C
    Ca,Sr,Ba,Yb,Eu,Li,K,Rb,La,Cs C
al3ni2 | A3B2_hP5_164_ad_d Al3Ni2 | Ni Al
    Ni,Pd,Pt,Ir Al,Ga,In; Co,Rh Al,In
u3si2 | A2B3_tP10_127_g_ah U3Si2 | Si U
    Si,Ge,B U,Ta,Nb,V,Th,Zr,Hf,Mo; Al Zr,Hf,Th; Si,Ge La,Y; Ga,Al Nb
corundum | A2B3_hR10_167_c_e Al2O3 | Al O
    Al,Ga,In,Ti,V,Cr,Fe,Rh,Sc,Mn,Co,Tl,Ir,Ni O; Al,Lu,Er,Y,In S; Ti,V,Cr S,Se
bi2te3 | A2B3_hR5_166_c_ac Bi2Te3 | Bi Te
    Bi,Sb,As,In Te,Se,S; Sc,Y,Tl,Er,Ga Te,Se
la2o3 | la2o3 | La O
    La,Ce,Pr,Nd,Ac,Y,Pu,Gd,Sm,Al,Sc O; Sb,Bi,As,N Mg; Al,Ga,In S,Se
heazlewoodite | A3B2_hR5_155_e_c Ni3S2 | S Ni
    S,Se Ni,Co,Fe,Cu; S Pd,Rh
half_heusler | ABC_cF12_216_b_c_a MgAgAs | Mg As Ag
    Ti,Zr,Hf Ni,Pd,Pt Sn,Ge,Pb; Nb,V,Ta Co,Rh,Ir Sn,Ge; V,Nb,Ta Fe,Ru Sb,As; Ti,Zr,Hf Co,Rh,Ir Sb,As,Bi;
    Li N,P,As,Sb Zn,Mg,Cd; Mg As,Sb,Bi Cu,Ag,Au; Mn Ni,Co,Cu,Pt Sb; Sc,Y,Lu,Er,La Ni,Pd,Pt,Au Sb,Bi,Sn;
    Li Si,Ge Al,In; Na P,As Mg,Zn; Ca Au Bi; U,Th Ni Sn
full_heusler | AB2C_cF16_225_a_c_b MnAlCu2 | Cu Mn Al
    Cu,Ni,Co,Fe,Pd,Ru,Rh,Au Mn Al,Ga,Sn,In,Ge,Sb; Co,Fe,Ni,Ru,Pd Ti,V,Zr,Hf,Nb,Sc Al,Ga,Sn,Si;
    Co Cr,Fe Al,Ga,Si,Ge; Li Mg,Zn,Cd Sn,Ge,Pb,Si; Ni,Cu,Pd Y,Er,Sc,Lu Sn,In,Pb; Ag,Au,Cu Li Al,In,Sn,Sb;
    Mn V,W Al,Ga,Si,Sn; K Na Sb; Fe Cr Si,Ge; Rh Fe Sn,Ge; Ag Mg Zn,In
inverse_heusler | inverse_heusler | Hg Cu Ti
    Mn Co,Ni,Fe,Cu Al,Ga,Sn,Sb,Ge,Si; Ti,Sc Co,Fe,Mn,Cu Al,Si,Sn,Sb; Hg Cu Ti; Li Ag,Au Sb,Sn; Cr Co,Mn Al,Sb,Ga
zrbesi | ABC_hP6_194_c_d_a LiBC | Li B C
    Zr,Hf Be Si; Li B C; K,Na,Rb Zn,Cd,Hg P,As,Sb; Ca,Sr,Ba,Eu Cu,Ag,Au P,As,Sb,Bi; La,Ce,Nd Cu Ge,Sn,Si;
    Sr,Ba Li As,Sb; Yb,Ca Zn,Cd Ge,Sn,Pb
baptsb | ABC_hP3_187_a_d_f BaSbPt BaPtSb | Ba Pt Sb
    Ba Pt,Pd,Ni Sb,P,As; La,Sr Pt,Ir As,P; Sr,Ba,Ca,La,Y Al,Ga Si,Ge; Li Be N,P; Th Pt,Ir As,P
pbfcl | ABC_tP6_129_c_a_c PbClF | Pb F Cl
    Ca,Sr,Ba,Pb,Eu F Cl,Br,I; Ca,Sr,Ba H Cl,Br,I; La,Bi,Nd,Sm,Gd,Er,Y,Pu,Ac O F,Cl,Br,I; Th,U O S,Se,Te;
    Sb O Cl,Br,I
lifeas | ABC_tP6_129_c_a_c PbClF | Pb F Cl
    Li,Na,K Fe,Co,Mn,Zn P,As,Sb; Zr,Hf Si S,Se,Te; Zr,Hf,Ti Ge Te,Sb,As; Mn Cu As,Sb; Na,K Mg,Zn,Mn P,As,Sb,Bi;
    Nb,Ta,Zr,Hf,U Si As; La,Ce,Gd Sb Te; Al Mn Ge; K,Na Li Se,Te,S; La,Ho Fe,Co,Mn Si,Ge; Gd,Y Ti,Fe Si,Ge
zrcusias | ABCD_tP8_129_c_b_a_c ZrCuSiAs | Zr Cu Si As
    La,Ce,Nd,Gd Fe,Co,Ni,Mn,Zn O P,As; La,Ce,Bi,Y,Gd Cu,Ag O S,Se,Te; Sr,Ba,Ca,Eu Fe,Co,Mn F As,P;
    Sr,Ba,Eu Cu,Ag F S,Se,Te; Zr,Hf,U,Th Cu Si P,As; La,Sm,Pr Ru,Cd O P,As; Th Fe,Ni,Mn N P,As
nafeo2 | ABC2_hR4_166_a_b_c NaCrS2 | Na Cr S
    Na,Li Co,Ni,Cr,Fe,V,Ti,Mn,Al,In,Sc,Y,Rh,Ga O; Na,K,Li Cr,In,Ti,V,Y,Er,La,Sc,Bi S,Se; Rb,K,Cs Bi,Er,Gd,Y S,Se;
    Ag Bi,Cr S,Se; Tl Bi,Sb Te,Se
delafossite | delafossite | Cu Al O
    Cu,Ag,Pd,Pt Al,Ga,In,Fe,Co,Cr,Sc,Rh,Y,La O; C Ca,Sr,Mg,Zn,Cd,Mn N
chalcopyrite | ABC2_tI16_122_a_b_d FeCuS2 CuFeS2 | Cu Fe S
    Cu,Ag Al,Ga,In,Fe,Tl S,Se,Te; Zn,Cd,Mg,Be Si,Ge,Sn P,As,Sb,N; Li Al,Ga,In Te,Se,S; Mn Ge P,As; Be,Mg C N
tlinse | tlinse | Tl In Se
    Tl,K,Na,Rb In,Ga,Al Se,Te,S; K,Rb,Cs Fe S,Se
perovskite | AB3C_cP5_221_a_c_b CaTiO3 | Ca Ti O
    Ca,Sr,Ba,Pb,Eu Ti,Zr,Hf,Sn,Mn,Fe,Ru,V,Mo,Nb,Tb,Ce O; K,Na,Li,Ag Nb,Ta O;
    La,Y,Nd,Gd,Bi Al,Ga,Cr,Fe,Co,Ni,Sc,V,Ti,Mn O; K,Rb,Cs,Na Mg,Mn,Fe,Co,Ni,Zn,Ca,Cd,Cu F;
    Cs,Rb,K,Tl Pb,Sn,Ge,Ca,Cd,Hg Cl,Br,I; K,Rb,Cs Mg,Ca H; Ba,Sr,Eu Li H; La W,Re N; Th Ta,Nb N
antiperovskite | AB3C_cP5_221_a_c_b CaTiO3 | Ca O Ti
    Ni,Zn,Ga,Ge,In,Sn,Cu,Al Mn,Ni,Fe,Cr C,N; Al,Ga,In,Tl,Sn,Pb Ti,Sc,Y,La,Zr C,N; Sb,Bi,As,P Ca,Mg,Sr,Ba N;
    Cl,Br,I Li,Na O; Sn,Pb,Ge,Si Ca,Sr,Ba O; Tl,In,Pb,Al Ce,Nd,Gd,Er C; Sc,Y,La,Ce Rh,Pd,Ru B
ilmenite | AB3C_hR10_148_c_f_c FeTiO3 TiFeO3 | Fe Ti O
    Mg,Mn,Fe,Co,Ni,Zn,Cd Ti,Ge,Si,Mn O; Na,Li,Ag Sb,Nb,Bi O; Cu V O; Mg,Mn Sn O
linbo3 | ABC3_hR10_161_a_a_b LiNbO3 | Li Nb O
    Li Nb,Ta,U,Re,Os O; Zn,Fe,Mn Sn,Ti,Ge O; Sc,In,Bi Fe,Cr,Ni O; La,Al Co,Ni,Ti O; Pb,Cd Ti,Ni O; Bi Al,Ga O
calcite | ABC3_hR10_167_a_b_e CaCO3 | Ca C O
    Ca,Mg,Mn,Fe,Co,Zn,Cd,Ni,Sr,Ba C O; Li,Na,Ag N O; In,Sc,Lu,Y,Al,Fe,Cr,V,Ti,Er B O
hexagonal_perovskite | hexagonal_perovskite | Ba Ni O
    Ba,Sr Ni,Co,Ti,Mn,Ir,Rh,Ru O; Ba,Sr V,Ti,Nb,Zr S,Se; Cs,Rb,Tl Ni,Co,Fe,Mn,Mg,V,Cr,Ti,Cd Cl,Br,I;
    Cs,Rb Ni,Mn F
elpasolite | elpasolite | K Na Al F
    Cs,Rb,K Na,K,Li,Ag Al,Ga,In,Fe,Cr,Sc,Y,La,Bi F,Cl,Br; Ba,Sr Mg,Ca,Fe,Zn,Co W,Mo,Re,U,Te,Os O;
    Sr,Ba Y,Sc,In,Fe Nb,Ta,Sb,Ru O; La Mg,Ni,Zn,Co Ir,Mn,Ti,Ru O; Cs Ag,Na,Cu,In,Au Bi,Sb,In,Tl,Au Cl,Br,I
k2ptcl6 | k2ptcl6 | K Pt Cl
    K,Rb,Cs,Tl Pt,Sn,Te,Ti,Zr,Hf,Re,Os,Ir,Pd,Se,Pb,W,Mo Cl,Br; K,Rb,Cs Si,Ge,Mn,Ti,Ni,Cr,Pt F;
    Cs,Rb Sn,Te,Zr,Hf,Pt,Ti I; Mg,Ca,Sr,Ba Fe,Ru,Os H; Na,K Pt H
k2ptcl4 | k2ptcl4 | K Pt Cl
    K,Rb,Cs Pt,Pd,Cu Cl,Br; K,Na Pt,Pd H
k2nif4 | AB2C4_tI14_139_a_e_ce La2CuO4 | La Cu O
    La,Nd,Pr Ni,Cu,Co O; Sr,Ba,Ca Ti,Ru,Rh,Ir,Mn,V,Sn,Pb,Mo,Fe,Hf,Zr,Tc O; K,Rb,Cs Ni,Mg,Mn,Fe,Co,Zn,Cd,Cu F;
    Cs,Rb,K Cd,Mn,Cr,Hg,Mg Cl; Na U O; K,Rb,Cs Mg,Zn H
infinite_layer | ABC2_tP4_123_d_a_f CaCuO2 | Ca Cu O
    Ca,Sr,Ba,La,Nd Cu,Fe,Ni,Pd O
srcuo2 | AB2C_oC16_63_c_2c_c SrCuO2 | Sr Cu O
    Sr,Ca,Ba Cu,Zn,Ni,Co O
thcr2si2 | thcr2si2 | Th Cr Si
    Ca,Sr,Ba,Eu,K,Rb,Cs Fe,Co,Ni,Mn,Ru,Rh,Zn,Cu,Cr As,P; La,Pr,Gd,Y,Ce,U,Th,Er Co,Ni,Ru,Rh,Pd,Cu,Fe,Mn,Ir,Ag Si,Ge;
    Ca,Ba,Sr Pd,Cu,Zn,Mn,Ag,Au Ge,Sb,Bi,Si; K,Rb,Cs,Tl Fe,Co,Ni,Cu S,Se; Ba,Sr,La Ir,Pt,Os Ge,P
bi2o2se | thcr2si2 | Th Cr Si
    Se,S,Te O Bi,La,Nd,Gd,Y,Pr,Er,Ce; Bi,Sb O La,Ce,Gd,Y,Th,Nd; Te O U
caal2si2 | caal2si2 | Ca Al Si
    Ca,Sr,Eu,Yb,Ba,Mg Mg,Zn,Cd,Mn P,As,Sb,Bi; Ca,Yb,Sr,Eu Al,Ga Si,Ge; La,Ce Li,Na Sb; La,Ce,Y Al Ge,Si
la2o2s | la2o2s | S La O
    S,Se La,Ce,Pr,Nd,Sm,Gd,Tb,Dy,Er,Lu,Y,Ac,Bi O; S,Se,O Th,U N; Zr,Hf,Ti,Ce,Th,U N Li
max_phase | ABC2_hP8_194_d_a_f AlCr2C AlCCr2 | Al Cr C
    Al,Si,Ga,Ge,In,Sn,S,P,Cd,Pb,Tl Ti,Zr,Hf,V,Nb,Ta,Cr,Sc C; Al,Ga,In,Ge Ti,Zr,V,Cr,Hf N; As,Zn V,Nb,Ti C
zrnial | zrnial | Zr Ni Al
    La,Pr,Gd,Y,Ce,Er,Lu,Zr,Hf,U,Sc Ni,Pd,Cu,Pt,Rh,Co,Ru Al,In,Ga,Sn; Ca,Yb,Ce,Eu Pd,Pt,Au,Ag In,Mg,Pb,Zn,Cd;
    Zr,Hf,Ti,Nb P,As Ru,Rh,Co,Fe,Ni; Y,La,Er Cu,Ni,Au Mg,Pb,Zn,Cd; Mn,Fe P,As Fe,Ni,Ru
tinisi | tinisi | Ti Ni Si
    Ti,Zr,Hf,Nb,Ta Ni,Co,Fe,Ru,Pd,Pt Si,Ge,P,Ga; La,Ce,Y,Er Ni,Pd,Pt Sn,Si,Ge,Al;
    Ca,Sr,Ba,Eu Pd,Pt,Au,Mg,Zn,Cd Si,Sn,Ge; Mn,Mo,W Co,Ni,Fe P,As,Ge
ceco3b2 | ceco3b2 | Ce Co B
    Ce,Y,La,Lu,Th,U,Er,Gd Co,Ru,Rh,Ir,Os B; La,Y,Th,Ce,U Ru,Os Si
mo2feb2 | mo2feb2 | Mo Fe B
    Mo,W,Ta,Nb,V Fe,Co,Ni,Al,Si,Cr B; Ce,La,Y,Gd,Er,Ca,U In,Mg,Sn,Pb,Cd Pd,Cu,Ni,Au,Pt,Rh
cabe2ge2 | cabe2ge2 | Ca Be Ge
    Ca,La,Ce,Y Pt,Pd,Ir,Ni Si,Ge,Sn,As,Sb,P; Sr,Ba,Eu Pt,Pd Sb,As,Ge; U,Th Ir,Pt Si,As
hocoga5 | AB5C_tP7_123_b_ci_a HoGa5Co HoCoGa5 | Ho Co Ga
    Ce,La,Y,U,Pu,Np,Gd,Ho,Th Co,Rh,Ir,Fe,Ni,Pd,Pt Ga,In,Al
cenic2 | A2BC_oC8_38_e_a_b CeNiC2 | Ce Ni C
    Ce,La,Nd,Gd,Y,U Ni,Co,Fe,Rh C; Y,Er,Ho,Sc Co,Ni,Ru,Cr,Re C
kesterite | kesterite | Cu Zn Sn S
    Cu,Ag Zn,Cd,Hg,Mn,Fe,Co,Mg Sn,Ge,Si S,Se,Te; Li Zn,Cd Sn,Ge S,Se
stannite | A2BC4D_tI16_121_d_a_i_b FeCu2SnS4 | Cu Fe Sn S
    Cu Fe,Mn,Zn,Cd,Hg,Ni Sn,Ge,Si S,Se,Te; Ag Cd,Hg,Mn,Fe Sn,Ge S,Se
sulvanite | A3B4C_cP8_215_d_e_a VCu3S4 | V Cu S
    V,Nb,Ta Cu,Ag,Tl S,Se,Te; P,As Cu S
lazarevicite | AB3C4_cP8_215_a_c_e Cu3AsS4 | As Cu S
    As,Sb,P Cu,Ag,Li S,Se
cdal2s4 | A2BC4_tI14_82_bc_a_g CdAl2S4 Al2CdS4 | Cd Al S
    Cd,Zn,Hg,Mg,Mn,Fe,Ca,Be,Pb Al,Ga,In S,Se,Te; Zn,Cd B S
bpo4 | AB4C_tI12_82_c_g_a BPO4 | B P O
    B,Al,Ga,Fe P,As O; Al,B P S,Se; Be S O
zircon | A4BC_tI24_141_h_b_a ZrSiO4 | Zr Si O
    Zr,Hf,Th,U,Ce,Ti Si,Ge O; Y,La,Gd,Er,Lu,Sc,Bi,Ce V,P,As,Cr O; Ca,Sr,Ba Cr,W,Mo O; Y,La Nb,Ta O
scheelite | scheelite | Ca W O
    Ca,Sr,Ba,Pb,Cd,Eu W,Mo O; K,Na,Rb,Ag,Cs,Tl Re,Tc,I O; Bi,La,Ce V,As,Nb O; Zr,Th Ge,Si O; Li Y,Lu,Er,Gd,Ho F;
    Ca,Cd Zn,Mg F; Na,K Cl O; Li,Na,K B,Al,Ga H
gebi2te4 | gebi2te4 | Ge Bi Te
    Ge,Sn,Pb,Mn,Eu,Mg Bi,Sb Te,Se; Zn,Mg,Fe,Ni In,Al,Ga S,Se; Ge As Te; Pb,Sn La,Y,Er,In Se,Te
pt3o4 | A4B3_cI14_229_c_b Pt3O4 | Pt O
    Pt,Pd,Ag O; Pd,Rh S
mgalb4 | AB4C_hP6_191_a_h_b MgAlB4 | Mg Al B
    Mg,Ca,Y,Er,Th,U Al,Ni,Ti,Co B; Mg Ga,Zn,Ti B; Sc,Zr Al,Nb B
ullmannite | ullmannite | Ni Sb S
    Ni,Pd,Pt Sb,As,Bi,P S,Se,Te; Co,Rh,Ir As,Sb,P S,Se; Ca,Ba,Sr,La,Eu Pt,Ir,Pd Si,P,Ge
"""
